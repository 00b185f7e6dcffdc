"""What people type: the command, its tables, its exit statuses."""
