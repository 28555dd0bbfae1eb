"""What a lab runs: programs built from source, and the images made of them."""
