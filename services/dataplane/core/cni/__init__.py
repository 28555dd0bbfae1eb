"""The runtime's calls as values: requests, results and errors of CNI."""
