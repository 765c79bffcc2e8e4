// theme.js - sets the chosen colours before the page is painted; without a choice the system's count.
try {
    const theme = localStorage.getItem('dibit.theme');
    if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch { /* no storage here: the system's colours it is */ }
