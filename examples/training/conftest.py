"""Its place is its purpose: pytest puts the folder of this file on the path of the tests."""
