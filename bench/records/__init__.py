"""The records of which the report is made, by what they are about."""
