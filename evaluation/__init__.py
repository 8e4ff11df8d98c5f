"""Measurements over the real wire. Stands above all rooms; nobody imports it."""
