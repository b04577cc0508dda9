"""What a visitor sees first: the pictures of the live page, and the commands of the README in a bare Debian."""
