"""The proof: every way a lock's holder can go, against every common kind of lock, with real processes on this kernel.

* A *kind* (`kind`, and one short module each in `kinds`) is a lock as people write it.
* An *event* (one function each in `events`) is what happens to its holder. It is written once, for all kinds; the
  tests of bindlock's own lock run the same functions.
* A *trial* is one event happening to one lock. A *cell* is many trials of one event with one kind.

**How a cell comes to its outcome.** The event knows the truth, because it made it: it has killed the holder and the
kernel has told of the death (`waitpid`), or it sees the holder live. Then the lock is asked, by somebody who tries to
have it. Had although the holder lives: *double*. Refused although nobody is there: *late* if it is had a little later,
else *stale*. It says that it could not even be tried: *cannot*. Anything else is *right*. A lock may look again for a
while before it answers, as bindlock does when the holder's process is gone: what counts is the answer. How long it took
is written down beside it.

**Processes.** One conductor (`run`) shows the progress and has one worker for each kind at a time (`worker`). The
worker forks holders, and is the one who tries the lock when the event does not say otherwise. Everything that a worker
makes, it makes in a `with` block. It is asked to stop by SIGTERM, which only sets a flag: that is looked at
between trials and while waiting, so a trial is never torn apart with a cgroup or a mount half made. What waits
below a worker does so by reading a pipe whose other end only the worker has, or is told by the kernel of its parent's
death. So all of them end with it, even when it is killed.

**What may go wrong.** An event that cannot be had on this machine, or for this kind, raises `NotPossible` with the
reason. Anything else that goes wrong is a fault of the proof, not of the lock, and is reported as that.
"""
