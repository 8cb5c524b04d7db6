"""The protocol, pure: machines that say what to send, keep and ask, and read the answers. No I/O, no clock."""
