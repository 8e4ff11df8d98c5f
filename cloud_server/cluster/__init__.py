"""Many replicas on many machines, on Ray Serve. Needs `ciar[ray]`; nothing else imports this."""
