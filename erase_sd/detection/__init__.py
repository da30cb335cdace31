"""Object detectors on images, in a child process."""
