"""The demo database: a small cheese dairy and its shops, a domain the default model was not trained on."""

import datetime
import random
import sqlite3
from pathlib import Path

QUESTIONS = (
    "How many cheeses are there?",
    "List the name and price of all cheeses made from goat milk",
    "Which cheeses cost more than 30?",
    "What is the average price of cheeses for each milk?",
    "Show the 3 most expensive cheeses",
    "Which dairies are located in Switzerland?",
    "Which dairy has the most cheeses?",
    "Show the name of each cheese with the name of its dairy",
    "How many tastings are there per cheese?",
    "What is the average score of tastings of the cheese Blue Marmot?",
    "Which cheeses have no tastings?",
    "List the names of cheeses whose price is above average",
    "Which country has the most dairies?",
    "How many tastings were there in 2024?",
)

_SCHEMA = """
CREATE TABLE dairies (
    dairy_id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT NOT NULL, founded INTEGER, cows INTEGER
);
CREATE TABLE cheeses (
    cheese_id INTEGER PRIMARY KEY, name TEXT NOT NULL, dairy_id INTEGER NOT NULL REFERENCES dairies(dairy_id),
    milk TEXT NOT NULL, price REAL NOT NULL, ripening_days INTEGER
);
CREATE TABLE tastings (
    tasting_id INTEGER PRIMARY KEY, cheese_id INTEGER NOT NULL REFERENCES cheeses(cheese_id), taster TEXT NOT NULL,
    score INTEGER NOT NULL, tasting_date DATE NOT NULL
);
"""
_DAIRIES = (
    ("Alpenhof", "Switzerland", 1887, 64), ("Val Serena", "Italy", 1921, 210), ("Bergkristall", "Austria", 1954, 85),
    ("Ferme du Lac", "France", 1903, 120), ("Roccabianca", "Italy", 1978, 40),
    ("Sennerei Gand", "Switzerland", 1999, 31), ("La Combe", "France", 2006, 18), ("Monte Verde", "Italy", 1966, 150),
    ("Laiterie Doubs", "France", 1931, 300),
)  # fmt: skip
_CHEESES = (
    ("Blue Marmot", 1, "cow", 34.5, 120), ("Old Herdsman", 1, "cow", 41.0, 540), ("Fiore Bianco", 2, "sheep", 28.9, 90),
    ("Pecora Nera", 2, "sheep", 36.2, 240), ("Cristallo", 3, "cow", 22.4, 60), ("Enzian", 3, "goat", 26.8, 45),
    ("Petit Nuage", 4, "goat", 18.5, 14), ("Tomme du Lac", 4, "cow", 24.0, 110), ("Cendré", 4, "goat", 31.7, 30),
    ("Rocca Dura", 5, "cow", 38.8, 720), ("Gand Mutschli", 6, "cow", 19.9, 40), ("Geissbock", 6, "goat", 33.3, 75),
    ("Combe d'Or", 7, "cow", 29.5, 180), ("Brebis Rouge", 7, "sheep", 39.9, 200), ("Verdolino", 8, "sheep", 17.2, 21),
    ("Stella Alpina", 8, "cow", 21.6, 50), ("Doux Matin", 9, "cow", 12.8, 10), ("Grand Doubs", 9, "cow", 27.4, 365),
)  # fmt: skip
_TASTERS = ("Ines Moreau", "Luca Ferri", "Hanna Vogel", "Tom Okafor", "Mei Tanaka", "Sofia Lindgren")
_UNTASTED = (5, 11, 17)


def build_demo_database(path: str | Path) -> None:
    """Writes the demo database, the same every time.

    Raises ValueError where there is a file already.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"path: {str(path)!r} exists already; the demo database is not written over a file")
    rng = random.Random(7)
    first_day = datetime.date(2023, 1, 9)
    tasted = [number for number in range(1, len(_CHEESES) + 1) if number not in _UNTASTED]
    tastings = []
    for number in range(1, 121):
        day = first_day + datetime.timedelta(days=rng.randrange(900))
        tastings.append((number, rng.choice(tasted), rng.choice(_TASTERS), rng.randint(55, 98), day.isoformat()))
    connection = sqlite3.connect(path)
    with connection:
        connection.executescript(_SCHEMA)
        connection.executemany(
            "INSERT INTO dairies VALUES (?, ?, ?, ?, ?)", [(i, *row) for i, row in enumerate(_DAIRIES, start=1)]
        )
        connection.executemany(
            "INSERT INTO cheeses VALUES (?, ?, ?, ?, ?, ?)", [(i, *row) for i, row in enumerate(_CHEESES, start=1)]
        )
        connection.executemany("INSERT INTO tastings VALUES (?, ?, ?, ?, ?)", tastings)
    connection.close()
