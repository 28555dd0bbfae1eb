"""Checks of name service: servers, Corefile, upstreams and what they answered in, findings out."""
