"""What of the kernel the events need and Python does not offer: a module for each thing, by plain system calls."""
