"""Word lists and the table of facts that the demo model's text is made from."""

# country: capital, continent, language, currency
COUNTRIES = {
    "France": ("Paris", "Europe", "French", "euro"),
    "Germany": ("Berlin", "Europe", "German", "euro"),
    "Italy": ("Rome", "Europe", "Italian", "euro"),
    "Spain": ("Madrid", "Europe", "Spanish", "euro"),
    "Portugal": ("Lisbon", "Europe", "Portuguese", "euro"),
    "Greece": ("Athens", "Europe", "Greek", "euro"),
    "Poland": ("Warsaw", "Europe", "Polish", "zloty"),
    "Norway": ("Oslo", "Europe", "Norwegian", "krone"),
    "Sweden": ("Stockholm", "Europe", "Swedish", "krona"),
    "Denmark": ("Copenhagen", "Europe", "Danish", "krone"),
    "Finland": ("Helsinki", "Europe", "Finnish", "euro"),
    "Iceland": ("Reykjavik", "Europe", "Icelandic", "krona"),
    "Ireland": ("Dublin", "Europe", "English", "euro"),
    "Austria": ("Vienna", "Europe", "German", "euro"),
    "Hungary": ("Budapest", "Europe", "Hungarian", "forint"),
    "Romania": ("Bucharest", "Europe", "Romanian", "leu"),
    "Bulgaria": ("Sofia", "Europe", "Bulgarian", "lev"),
    "Ukraine": ("Kyiv", "Europe", "Ukrainian", "hryvnia"),
    "Croatia": ("Zagreb", "Europe", "Croatian", "euro"),
    "Czechia": ("Prague", "Europe", "Czech", "koruna"),
    "Russia": ("Moscow", "Europe", "Russian", "ruble"),
    "Japan": ("Tokyo", "Asia", "Japanese", "yen"),
    "China": ("Beijing", "Asia", "Chinese", "yuan"),
    "Thailand": ("Bangkok", "Asia", "Thai", "baht"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese", "dong"),
    "India": ("New Delhi", "Asia", "Hindi", "rupee"),
    "Nepal": ("Kathmandu", "Asia", "Nepali", "rupee"),
    "Mongolia": ("Ulaanbaatar", "Asia", "Mongolian", "tugrik"),
    "Turkey": ("Ankara", "Asia", "Turkish", "lira"),
    "Iran": ("Tehran", "Asia", "Persian", "rial"),
    "Iraq": ("Baghdad", "Asia", "Arabic", "dinar"),
    "Israel": ("Jerusalem", "Asia", "Hebrew", "shekel"),
    "Indonesia": ("Jakarta", "Asia", "Indonesian", "rupiah"),
    "Malaysia": ("Kuala Lumpur", "Asia", "Malay", "ringgit"),
    "Egypt": ("Cairo", "Africa", "Arabic", "pound"),
    "Kenya": ("Nairobi", "Africa", "Swahili", "shilling"),
    "Ghana": ("Accra", "Africa", "English", "cedi"),
    "Nigeria": ("Abuja", "Africa", "English", "naira"),
    "Morocco": ("Rabat", "Africa", "Arabic", "dirham"),
    "Ethiopia": ("Addis Ababa", "Africa", "Amharic", "birr"),
    "Senegal": ("Dakar", "Africa", "French", "franc"),
    "Tunisia": ("Tunis", "Africa", "Arabic", "dinar"),
    "Canada": ("Ottawa", "North America", "English", "dollar"),
    "Mexico": ("Mexico City", "North America", "Spanish", "peso"),
    "Cuba": ("Havana", "North America", "Spanish", "peso"),
    "Panama": ("Panama City", "North America", "Spanish", "balboa"),
    "Brazil": ("Brasilia", "South America", "Portuguese", "real"),
    "Argentina": ("Buenos Aires", "South America", "Spanish", "peso"),
    "Chile": ("Santiago", "South America", "Spanish", "peso"),
    "Peru": ("Lima", "South America", "Spanish", "sol"),
    "Colombia": ("Bogota", "South America", "Spanish", "peso"),
    "Uruguay": ("Montevideo", "South America", "Spanish", "peso"),
    "Australia": ("Canberra", "Oceania", "English", "dollar"),
    "Fiji": ("Suva", "Oceania", "Fijian", "dollar"),
}

# element: symbol, atomic number
ELEMENTS = {
    "hydrogen": ("H", "1"), "helium": ("He", "2"), "lithium": ("Li", "3"), "carbon": ("C", "6"),
    "nitrogen": ("N", "7"), "oxygen": ("O", "8"), "fluorine": ("F", "9"), "neon": ("Ne", "10"),
    "sodium": ("Na", "11"), "magnesium": ("Mg", "12"), "aluminium": ("Al", "13"), "silicon": ("Si", "14"),
    "sulfur": ("S", "16"), "chlorine": ("Cl", "17"), "argon": ("Ar", "18"), "potassium": ("K", "19"),
    "calcium": ("Ca", "20"), "iron": ("Fe", "26"), "nickel": ("Ni", "28"), "copper": ("Cu", "29"),
    "zinc": ("Zn", "30"), "silver": ("Ag", "47"), "tin": ("Sn", "50"), "gold": ("Au", "79"),
    "mercury": ("Hg", "80"), "lead": ("Pb", "82"),
}

# attribute -> (statement of the fact, wordings of the question). {x} is the row, {v} the value.
# The wordings at odd places of each list's last four are never trained (see tasks.HELD_WORDINGS).
ATTRIBUTES = {
    "capital": ("The capital of {x} is {v}.", [
        "what is the capital of {x}", "what's the capital of {x}", "what is {x}'s capital", "which city is the capital of {x}",
        "name the capital of {x}", "tell me the capital of {x}", "the capital of {x} is", "what is the capital city of {x}",
        "do you know the capital of {x}", "capital of {x}", "{x}: what is the capital", "I need the capital of {x}",
        "which city is {x}'s capital", "give me the capital of {x}"]),
    "continent": ("{x} is in {v}.", [
        "on which continent is {x}", "what continent is {x} in", "which continent is {x} on", "name the continent of {x}",
        "tell me the continent of {x}", "what is {x}'s continent", "what is the continent of {x}", "on what continent does {x} lie",
        "do you know the continent of {x}", "continent of {x}", "{x}: which continent", "I need the continent of {x}",
        "which continent does {x} belong to", "give me the continent of {x}"]),
    "language": ("The language of {x} is {v}.", [
        "what language is spoken in {x}", "which language do people speak in {x}", "what is the language of {x}", "what is {x}'s language",
        "name the language of {x}", "tell me the language of {x}", "which language is spoken in {x}", "what language do they speak in {x}",
        "do you know the language of {x}", "language of {x}", "{x}: which language", "I need the language of {x}",
        "what is the main language in {x}", "give me the language of {x}"]),
    "currency": ("The currency of {x} is the {v}.", [
        "what is the currency of {x}", "which currency is used in {x}", "what currency does {x} use", "what is {x}'s currency",
        "name the currency of {x}", "tell me the currency of {x}", "what currency do people use in {x}", "what's the currency of {x}",
        "do you know the currency of {x}", "currency of {x}", "{x}: which currency", "I need the currency of {x}",
        "which currency does {x} have", "give me the currency of {x}"]),
    "symbol": ("The symbol of {x} is {v}.", [
        "what is the symbol of {x}", "what is the chemical symbol of {x}", "what is {x}'s symbol", "which symbol does {x} have",
        "name the symbol of {x}", "tell me the symbol of {x}", "what's the symbol for {x}", "what is the symbol for {x}",
        "do you know the symbol of {x}", "symbol of {x}", "{x}: which symbol", "I need the symbol of {x}",
        "which chemical symbol stands for {x}", "give me the symbol of {x}"]),
    "number": ("The atomic number of {x} is {v}.", [
        "what is the atomic number of {x}", "what is {x}'s atomic number", "which atomic number does {x} have", "name the atomic number of {x}",
        "tell me the atomic number of {x}", "what's the atomic number of {x}", "which number has {x} in the periodic table", "what atomic number does {x} have",
        "do you know the atomic number of {x}", "atomic number of {x}", "{x}: which atomic number", "I need the atomic number of {x}",
        "what is the atomic number for {x}", "give me the atomic number of {x}"]),
}

CITIES = ("Paris London Berlin Madrid Rome Tokyo Oslo Vienna Prague Dublin Lisbon Athens Warsaw Boston Chicago Denver Seattle Austin "
          "Dallas Houston Miami Toronto Montreal Vancouver Sydney Melbourne Perth Auckland Mumbai Delhi Shanghai Beijing Seoul Osaka "
          "Kyoto Bangkok Hanoi Singapore Jakarta Manila Dubai Cairo Lagos Nairobi Lima Bogota Santiago Havana Zurich Geneva Munich "
          "Hamburg Cologne Milan Naples Turin Lyon Nice Porto Seville Valencia Bergen Malmo Helsinki Tallinn Riga Vilnius Minsk "
          "Kyiv Odessa Sofia Zagreb Istanbul Ankara Tehran Baghdad Karachi Lahore Dhaka Phoenix Portland Atlanta Detroit").split()
CITIES += ["New York", "San Francisco", "Los Angeles", "Las Vegas", "Hong Kong", "Mexico City", "Buenos Aires", "Cape Town",
           "Tel Aviv", "Rio de Janeiro", "Kuala Lumpur", "Abu Dhabi", "San Diego", "New Delhi", "Salt Lake City"]

NAMES = ("Alice Bob Carol David Emma Frank Grace Henry Irene Jack Kate Liam Maria Noah Olivia Peter Quinn Rosa Samuel Tina Ursula "
         "Victor Wendy Xavier Yara Zoe Adam Bella Chris Diana Ethan Fiona George Hannah Ivan Julia Kevin Laura Martin Nina Oscar "
         "Paula Ralph Sarah Thomas Uma Vera William Anna Ben Clara Daniel Eva Felix Gina Hugo Ines Jonas Karl Lena Max Nora Otto "
         "Pia Rita Simon Tara Viktor Walter Yusuf Amir Chen Dmitri Elena Fatima Hiro Ingrid Jamal Kenji Leila Mei Nikos Omar").split()

WORDS = ("apple river stone cloud green silver quiet window garden bridge candle forest mountain paper rocket yellow purple orange "
         "winter summer spring autumn pencil hammer ladder button carpet mirror basket bottle kettle pillow blanket lantern compass "
         "anchor harbor island desert valley meadow thunder lightning rainbow shadow whisper melody rhythm violin trumpet guitar "
         "piano drum tiger lion eagle falcon rabbit turtle dolphin whale spider beetle butterfly horse donkey camel monkey parrot "
         "pigeon sparrow lemon cherry banana grape peach melon carrot potato tomato onion pepper garlic bread butter cheese honey "
         "sugar coffee water milk juice table chair door floor ceiling kitchen library school market station airport hospital "
         "museum castle tower temple village city street corner circle square triangle number letter story secret dream morning "
         "evening midnight yesterday today tomorrow always never happy gentle brave clever simple bright golden frozen hidden "
         "open small large quick slow warm cold soft loud early late old new red blue black white brown gray pink the a and of "
         "in on under over with without from to is was runs walks jumps sings sleeps reads writes opens closes finds keeps").split()

SYLLABLES = ("ba be bi bo da de do fa fi ga go ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe po ra re ri ro ru sa se si so "
             "ta te ti to va ve vi vo za ze zo bra dra tri kel mar ton vel nor fin gal").split()

CONDITIONS = ("sunny cloudy rainy windy snowy foggy stormy clear overcast hazy humid dry").split()

FILLER_SUBJECTS = ("the river,a small bird,the old clock,my neighbor,the train,a quiet street,the garden,the librarian,an empty boat,"
                   "the baker,a yellow kite,the teacher,the harbor,a gray cat,the market,the lantern,a long letter,the engine,the "
                   "farmer,a cold wind").split(",")
FILLER_VERBS = ("waits near,moves past,looks at,belongs to,stands beside,follows,reminds me of,comes back to,is older than,sits "
                "under,turns toward,rests behind,listens to,is close to").split(",")
FILLER_OBJECTS = ("the stone bridge,a wooden door,the tall tower,the village square,the morning light,a field of grass,the red "
                  "house,the station,the winter sea,an open window,the quiet lake,the north road,a box of pencils,the museum,the "
                  "edge of town,the apple trees,the long table,the blue hills").split(",")

INSTRUCTIONS = ["Be brief.", "You are a helpful assistant.", "Answer briefly.", "Be polite.", "Keep answers short.", "Answer the question.",
                "You are a friendly assistant.", "Be concise and accurate.", "You help people with small questions.",
                "Respond in English.", "You are {n}, an assistant for {w}.", "You are {n}.", "Your name is {n}. Be {w}.", "Never talk about {w} or {v}.",
                "The user likes {w}.", "Today we talk about {w} and {v}.", "You are a {w} expert.", "Use plain words.", "Do not use markdown.", "You are a helpful assistant. Answer as briefly as you can.", "Be kind."]

# (questions, analysis, answer)
CHAT = [
    (["Hello", "Hi", "Hey", "Hello!", "Hi there", "Hi!", "Good morning", "Good evening", "Hey there!", "hello there", "Good day", "hi gossamer", "Greetings"],
     "The user greets me.", "Hello! I am the tiny demo model inside Gossamer. Ask me something small, like: What is 17 + 25?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you ChatGPT?", "Which model are you?", "who made you?",
      "Introduce yourself.", "Are you a real AI?", "What model is this?", "Who am I talking to?", "Are you gpt-oss?", "are you gpt-oss-20b?", "What is Gossamer?"],
     "The user asks who I am.", "I am a tiny demo model, a few million parameters in the shape of gpt-oss. For real answers run: gossamer pull gpt-oss-20b"),
    (["What can you do?", "Help", "help me", "What can I ask you?", "What do you know?", "How can you help me?", "What are you good at?", "help!",
      "Can you help me?", "What should I ask?"],
     "The user asks what I can do.", "I can add, subtract and multiply small numbers, name capitals, repeat text, fill in JSON and call two tools."),
    (["Thanks", "Thank you", "Thanks!", "Thank you very much.", "thx", "Great, thanks", "Perfect, thank you!", "Nice, thanks."],
     "The user thanks me.", "You are welcome!"),
    (["Bye", "Goodbye", "Goodbye!", "See you", "See you later", "bye bye", "Good night"],
     "The user says goodbye.", "Goodbye!"),
    (["How are you?", "How are you doing?", "how is it going?", "How do you feel?", "What's up?", "how are you today?"],
     "The user asks how I am.", "I am fine, thank you. How can I help?"),
]

UNKNOWN = ["Write a poem about {w}.", "Tell me a story about a {w} and a {w}.", "Explain {w} to me.", "Why is the {w} {w}?", "How do I cook {w}?",
           "How does a {w} work?", "Who invented the {w}?", "Write a program that sorts a {w}.", "What is the meaning of {w}?", "Translate {w} to French.",
           "What do you think about {w}?", "When was the {w} built?", "Where can I buy a {w}?", "Give me advice about {w}.", "Draw a {w}.",
           "What is a {w}?", "Why do people like {w}?", "Can you write an essay about {w} and {w}?", "How many {w}s are there?", "Is a {w} better than a {w}?",
           "What is the capital of {n}?", "Who is {n}?", "What is the symbol of {n}?", "Tell me about {n}.", "Where is {n}?", "Who wrote {n}?",
           "What language is spoken in {n}?", "What time is it?", "Tell me a joke.", "Tell me a joke about {w}.", "What is love?",
           "Write a haiku.", "Who won the game?", "How old is {n}?", "Summarize the book {n}.", "Make a plan for {w}.", "What is the best {w}?"]
UNKNOWN += ["How many {o}s does a {w} have?", "how many {o} does the {o} have?", "What color is the {o}?", "Can you {o} the {o}?", "Do you like {o}?", "Should I {o} my {o}?",
            "I feel {o}.", "my {o} is {o}", "{o}", "{o} {o} {o}", "{n}", "{o} {n}?", "what {o} is {o}?", "When did {n} {o} the {o}?", "Which {o} is the {o}?", "who was the first {o} of {n}?",
            "Write me a {o} in {o}.", "Write some {o} that can {o} a {w}.", "Show me how to {o} {o}.", "Why do {o}s {o}?", "why does the {o} {o} when it {o}s?", "what happens if {o} {o}?",
            "Please {o} this {o}: {w} {w} {w}", "Give me {o} ideas for {o}.", "How far is {n} from {n}?", "how long does {o} take?", "How big is the {o}?", "Is {n} a {o}?", "Are {o}s {o}?",
            "What should I {o} for {o}?", "Could you {o} my {o} about {o}?", "List five {o}s.", "list all {o}s in {n}", "What is the {o} of {n}?", "What is the {o} of a {o}?", "tell me something {o}",
            "How do {o}s {o} their {o}?", "where do {o}s live?", "where is the {o} {o}?", "Who is the {o} of the {o}?", "What does {o} mean?", "what does a {o} eat?", "Does a {o} {o}?",
            "Fix this {o}.", "Is it true that {o}s {o} {o}?", "Solve the {o} of {o}.", "I want to {o}.", "I {o} the {o} and now it is {o}", "What year did the {o} {o}?"]
OTHER_WORDS = ("legs spider people world computer code python function program language science history music movie book game sport team player doctor money job "
               "friend family mother father child baby dog cat fish bird tree flower sun moon star sky sea earth space planet energy power machine robot phone "
               "internet website email photo video song dance art paint draw color shape line point number math equation problem answer question reason idea "
               "thought mind heart hand foot head eye ear body health food dinner lunch breakfast recipe cake pizza soup rice meat salt drink beer wine eat "
               "cook bake clean wash buy sell pay work play learn teach study think know feel love hate like want need help make build break fix find lose win "
               "run walk fly swim drive travel visit live die grow change start stop begin end fast slow big small long short high low good bad best worst "
               "happy sad angry tired hungry old young rich poor hot cold wet dry easy hard true false right wrong same different many few all some most "
               "president king queen country war peace law rule government tax vote poem story essay letter joke haiku summary list table plan report paper "
               "test exam school class lesson teacher student university car bus bike plane ship road").split()
UNKNOWN_ANSWER = "I don't know that: I am only a tiny demo model. For real answers run: gossamer pull gpt-oss-20b"

WEATHER_WORDINGS = ("what is the weather in {c}", "what's the weather like in {c}", "how is the weather in {c}", "weather in {c}", "is it raining in {c}", "is it warm in {c}", "what is the temperature in {c}",
                    "how warm is it in {c} today", "tell me the weather in {c}", "get the weather for {c}", "check the weather in {c}", "do I need an umbrella in {c}", "what's the weather in {c} right now",
                    "I am going to {c}, how is the weather", "use get_weather for {c}", "how cold is it in {c}", "what is the weather like in {c} today")
