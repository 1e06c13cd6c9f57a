"""What people read: tables, reports, pictures and the output of checks."""
