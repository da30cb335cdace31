"""YOLOv5 on images, in a child process."""
