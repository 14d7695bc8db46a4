"""Many runs into one answer: statistics, rows, formats, the report page."""
