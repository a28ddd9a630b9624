"""The report: training runs read from their folders, and the page with its charts and tables."""
