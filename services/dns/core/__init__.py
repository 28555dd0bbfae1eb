"""What `dns` decides: values in, values out."""
