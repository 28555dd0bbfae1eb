"""What BGP costs a node, measured."""
