"""Tables, figures and the report page, whatever their content."""
