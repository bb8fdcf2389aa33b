<?php
// A guest book: a POST adds an entry to the database and a file to the uploads, a GET lists both.
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
header('Content-Type: text/plain');
try {
    $book = new mysqli('db', 'site', 'secret', 'site');
    if ($_SERVER['REQUEST_METHOD'] === 'POST') {
        $insert = $book->prepare('INSERT INTO entries (author) VALUES (?)');
        $insert->execute([$_POST['author']]);
        file_put_contents('/srv/uploads/' . basename($_POST['author']), 'uploaded by ' . $_POST['author']);
    }
    foreach ($book->query('SELECT number, author FROM entries ORDER BY number') as $row) {
        echo $row['number'], ' ', $row['author'], ': ', file_get_contents('/srv/uploads/' . $row['author']), "\n";
    }
} catch (Throwable $error) {
    http_response_code(500);
    echo get_class($error), ': ', $error->getMessage(), "\n";
}
