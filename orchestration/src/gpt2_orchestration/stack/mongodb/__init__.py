"""The embedded stand-in for MongoDB: its wire protocol over SQLite, for one machine.

It answers as MongoDB does, or refuses with an error: never with a result that MongoDB would not give.
"""
