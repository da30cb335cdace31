"""What is loaded and saved: presets, CLIP, diffusers pipelines, erased encoders, exports."""
