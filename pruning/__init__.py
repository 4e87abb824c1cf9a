"""The subject: criteria, allocation, surgery and methods. Knows networks, not training."""
