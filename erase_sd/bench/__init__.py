"""Speed of erase-sd beside what one would write without it."""
