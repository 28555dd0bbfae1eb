"""Routing information bases: Adj-RIB-In, Loc-RIB and Adj-RIB-Out, and the decision between paths (RFC 4271 3.2, 9)."""
