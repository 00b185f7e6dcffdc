"""The kinds of lock that are put to the proof, one short module each. See bindlock.proof.kind for how to add one."""
