"""From stored runs to tables and figures; reads run stores and never trains anything."""
