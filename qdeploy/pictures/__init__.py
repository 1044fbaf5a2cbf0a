"""From an image file to what a network reads, for training and `qdeploy predict` alike. No torch."""
