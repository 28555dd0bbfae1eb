"""What a cluster is given: images, kinds, rights, manifests."""
