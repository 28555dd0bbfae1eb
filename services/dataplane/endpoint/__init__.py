"""The life of this node's endpoints: admission, attaching, repair, identity, publishing."""
