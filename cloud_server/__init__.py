"""The cloud: draws prefixes and judges drafts of many devices at once. Knows nothing of the device's code."""
