-- The database of the README's example: sqlite3 examples/library.sqlite < examples/library.sql
CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT NOT NULL);
CREATE TABLE books (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, author_id INTEGER NOT NULL REFERENCES authors(id),
    year INTEGER NOT NULL, pages INTEGER NOT NULL
);
INSERT INTO authors VALUES (1, 'Selma Lagerlöf', 'Sweden'), (2, 'Italo Calvino', 'Italy'), (3, 'Ursula Le Guin', 'United States');
INSERT INTO books VALUES
    (1, 'Gösta Berlings saga', 1, 1891, 430), (2, 'Jerusalem', 1, 1901, 342), (3, 'Il barone rampante', 2, 1957, 284),
    (4, 'Le città invisibili', 2, 1972, 170), (5, 'The Dispossessed', 3, 1974, 341), (6, 'Always Coming Home', 3, 1985, 523);
