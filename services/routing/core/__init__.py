"""Pure decisions about routes: present state in, kernel operations out."""
