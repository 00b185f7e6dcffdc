"""What bindlock costs, beside other locks and beside the bare system calls: ``python -m benchmarks --help``.

Targets are ratios wherever possible, because ratios carry over from one machine to another. Whatever is compared is
measured in the same run and in turns, so that a machine that slows down or gets busy does so for all alike.
"""
