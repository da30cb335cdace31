"""Models and what is loaded and saved: presets, CLIP, pipelines, erased encoders, exports."""
