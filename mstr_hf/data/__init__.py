"""Reading and writing data sets: manifests."""
