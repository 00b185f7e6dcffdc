"""The only code that makes a system call; each module opens with the kernel rules it relies on."""
