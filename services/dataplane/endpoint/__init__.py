"""The lifecycle of this node's endpoints: admission, attaching, repair, identity, publishing."""
