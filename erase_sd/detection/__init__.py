"""YOLOv5 on images, in a process of its own."""
