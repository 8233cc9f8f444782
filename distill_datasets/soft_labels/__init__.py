"""Labels of recorded views: made by teachers, coded, kept in files, and replayed to students."""
