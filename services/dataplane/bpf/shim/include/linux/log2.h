/* Empty: bcc includes it and uses nothing of it here. */
