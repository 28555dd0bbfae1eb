"""What runs while an image is built, inside of its stages: files by themselves, which import nothing of ours."""
