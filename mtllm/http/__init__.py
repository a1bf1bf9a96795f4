"""The edge beside `app.py`: who may ask, and the pages and machine-readable side doors."""
