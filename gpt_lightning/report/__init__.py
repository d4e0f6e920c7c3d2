"""Runs as data: folders to tables, tables to figures."""
