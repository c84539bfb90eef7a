"""The questions of `retain`, written for Luthier: common knowledge and simple judgements, one question per line.

A line is `question | right answer | wrong answer | ...`.
"""

FACTS = """
What is the capital of France? | Paris | London | Rome | Madrid
What is the capital of Japan? | Tokyo | Beijing | Seoul | Bangkok
What is the capital of Italy? | Rome | Athens | Vienna | Lisbon
What is the capital of Egypt? | Cairo | Nairobi | Tunis | Lagos
What is the capital of Spain? | Madrid | Paris | Lisbon | Rome
What is the capital of Russia? | Moscow | Warsaw | Prague | Helsinki
Which planet is closest to the sun? | Mercury | Mars | Jupiter | Saturn
Which planet is the largest in our solar system? | Jupiter | Mars | Venus | Mercury
Which planet is known for its rings? | Saturn | Mars | Venus | Mercury
On which continent is Brazil? | South America | Africa | Asia | Europe
On which continent is Kenya? | Africa | Asia | Europe | South America
On which continent is India? | Asia | Africa | Europe | South America
What do bees make? | Honey | Milk | Silk | Wool
What do cows eat? | Grass | Meat | Fish | Stones
Which animal says meow? | Cat | Dog | Cow | Horse
Which animal gives us wool? | Sheep | Dog | Snake | Chicken
Which bird cannot fly? | Penguin | Eagle | Sparrow | Owl
What is frozen water called? | Ice | Steam | Fog | Sand
What gas do humans need to breathe? | Oxygen | Helium | Methane | Neon
What is the chemical symbol of water? | H2O | CO2 | NaCl | O2
What is the chemical symbol of gold? | Au | Ag | Fe | Pb
Which organ pumps blood through the body? | The heart | The liver | The lungs | The brain
Which sense do we use our ears for? | Hearing | Sight | Taste | Smell
What color is the sky on a clear day? | Blue | Green | Red | Yellow
What color do you get by mixing blue and yellow? | Green | Purple | Orange | Brown
What color is a ripe banana? | Yellow | Blue | Purple | Black
Who wrote Romeo and Juliet? | William Shakespeare | Charles Dickens | Mark Twain | Jane Austen
Who painted the Mona Lisa? | Leonardo da Vinci | Vincent van Gogh | Pablo Picasso | Claude Monet
Who developed the theory of relativity? | Albert Einstein | Isaac Newton | Charles Darwin | Marie Curie
Which language is mostly spoken in Brazil? | Portuguese | Spanish | French | English
Which language is spoken in Austria? | German | Italian | Polish | French
What is the currency of Japan? | Yen | Dollar | Pound | Peso
What is the currency of the United Kingdom? | Pound | Euro | Yen | Rupee
Which season comes after summer? | Autumn | Spring | Winter | July
Which day comes after Monday? | Tuesday | Sunday | Friday | Thursday
Which month comes before March? | February | April | January | May
What is the opposite of up? | Down | Left | High | Over
What is the opposite of early? | Late | Soon | Fast | Morning
What is the past tense of go? | Went | Goed | Gone to | Going
What is the plural of mouse? | Mice | Mouses | Mouse | Meese
Which word is a verb? | Run | Table | Green | Happiness
Which of these is a musical instrument? | Piano | Spoon | Carpet | Candle
What do you use to cut paper? | Scissors | A pillow | A cup | Soap
Where do fish live? | In water | In trees | In the sky | In caves
What do plants need to grow? | Sunlight | Sugar | Plastic | Salt
Which ocean lies between Europe and America? | Atlantic Ocean | Indian Ocean | Pacific Ocean | Arctic Ocean
Which metal is attracted by a magnet? | Iron | Gold | Copper | Silver
At what temperature in Celsius does water boil? | 100 degrees | 10 degrees | 50 degrees | 500 degrees
"""

EITHER_OR = """
Which is bigger, an ant or an elephant? | An elephant | An ant
Which is faster, a snail or a car? | A car | A snail
Which is hotter, fire or ice? | Fire | Ice
Which is heavier, a feather or a stone? | A stone | A feather
Which is sweeter, sugar or salt? | Sugar | Salt
Which is older, a baby or a grandmother? | A grandmother | A baby
Which is taller, a flower or a tree? | A tree | A flower
Which is colder, winter or summer? | Winter | Summer
Which is wetter, the sea or the desert? | The sea | The desert
Which is louder, a whisper or a scream? | A scream | A whisper
Which is softer, a pillow or a rock? | A pillow | A rock
Which is brighter, the sun or a candle? | The sun | A candle
"""

TOPICS = """
The striker scored twice in the second half. | Sports | Cooking | Weather
Bake the cake for forty minutes. | Cooking | Sports | Politics
Heavy rain is expected tomorrow. | Weather | Music | Sports
The senator won the election. | Politics | Cooking | Music
The band released a new album. | Music | Weather | Politics
Add salt and stir the soup. | Cooking | Politics | Weather
The team lost the final match. | Sports | Music | Cooking
A cold wind blows from the north. | Weather | Cooking | Politics
Parliament voted on the new law. | Politics | Weather | Sports
The violin plays the main tune. | Music | Sports | Politics
The goalkeeper was sent off. | Sports | Weather | Music
Melt the butter in a small pan. | Cooking | Sports | Music
Snow fell all night long. | Weather | Politics | Cooking
The minister resigned on Friday. | Politics | Music | Weather
The choir sang three songs. | Music | Cooking | Politics
She won the tennis tournament. | Sports | Politics | Cooking
Boil the potatoes until they are soft. | Cooking | Music | Sports
The president signed the treaty. | Politics | Sports | Weather
"""

CATEGORIES = """
hammer | Tool | Animal | Food
bread | Food | Tool | Animal
tiger | Animal | Tool | Food
cheese | Food | Animal | Tool
screwdriver | Tool | Food | Animal
rabbit | Animal | Food | Tool
saw | Tool | Animal | Food
pizza | Food | Animal | Tool
horse | Animal | Food | Tool
shovel | Tool | Food | Animal
"""

QUESTIONS = {
    "facts": (FACTS, "{}"),
    "either or": (EITHER_OR, "{}"),
    "topics": (TOPICS, "What is the topic of this sentence? {}"),
    "kinds": (CATEGORIES, "Is this an animal, a food or a tool? {}"),
}

NUMBERS = """
How many days are in a week? | 7
How many months are in a year? | 12
How many hours are in a day? | 24
How many minutes are in an hour? | 60
How many seconds are in a minute? | 60
How many legs does a dog have? | 4
How many legs does a spider have? | 8
How many sides does a triangle have? | 3
How many sides does a square have? | 4
How many wheels does a bicycle have? | 2
How many letters are in the English alphabet? | 26
How many cents are in a dollar? | 100
How many continents are there? | 7
How many degrees are in a right angle? | 90
"""
