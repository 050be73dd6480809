"""Tables 2 and 3 and Figures 5 to 7 of the paper: the trainings they need, and the tables and plots of the results."""
