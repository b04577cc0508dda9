"""Programs for a visitor's first impression: take the pictures of the live page and of a stall, and try the README's commands."""
