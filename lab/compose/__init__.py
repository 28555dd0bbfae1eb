"""One host of the mesh in containers, by compose: keys, programs, engine (``compose/README.md``)."""
