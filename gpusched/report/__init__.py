"""From stored runs to a verdict: statistics, tables, figures and the page, as functions of what is read."""
