"""Published models that look at pictures, read from files their users fetched. Nothing is downloaded."""
