"""What a program wants of the operating system besides the network: processes and paths."""
